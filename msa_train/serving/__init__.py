"""HTTP: questions, memory banks and the explorer page, over FastAPI and uvicorn."""
