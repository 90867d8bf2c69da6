// What the words of the trade mean, in plain ones. terms.js shows them behind a "?".

export const GLOSSARY = {
  generate: ["Written ids", "The model writes the numbers of the documents that it wants to read, such as [41]. Their texts are read in full, and it may then ask for more, or answer."],
  router: ["Router's votes", "Small parts of the model, its routers, each rank the documents for the question. Those that rank highest on average are read in full, then the model answers."],
  memory: ["Memory alone", "No text is read again. The model answers from what it kept of the documents when they were added: a short form of them, in which details such as numbers can be lost."],
  hybrid: ["BM25, hybrid", "A search for the question's words (BM25) votes together with the routers. It finds rare names and codes, the routers find the same thing said in other words."],
  round: ["Round", "One search in the memory, and the reading of what it found. An answer may take several: each searches with what has been read so far."],
  layer: ["Layer", "The model works in layers, one upon the other. Some of them search the memory, and each of those chooses documents for itself."],
  chunk: ["Chunk", "A piece of a document, of a fixed number of tokens. A document is found by the piece of it that fits the question best."],
  score: ["Score", "How well a document's best chunk fits the question, as one layer sees it. Scores are compared within a layer; they are no probabilities."],
  vote: ["Vote", "The mean of a document's scores over the layers: the order in which the routers name documents."],
  gate: ["Gate", "What a layer adds to the weight of a document's best chunk when it attends to it. The higher, the more of the answer comes from there."],
  temperature: ["Temperature", "At 0 the model always takes the likeliest next word, so that the same question gets the same answer. The higher, the more the answers vary, and the more often they are wrong."],
};

/** Ways to find what to answer from. name: to choose it; told: of an answer; about: in one line. */
export const MODES = {
  generate: {
    name: "Written ids", told: "ids written",
    about: "The model names the documents it wants, reads their texts, then answers.",
  },
  router: {
    name: "Router's votes", told: "router's votes",
    about: "The documents that fit the question best are read in full, then the model answers.",
  },
  memory: {
    name: "Memory alone", told: "memory alone",
    about: "The model answers from its compressed memory, without reading any text again.",
  },
};
