"""Where banks of documents and questions come from: one interface, base.Source."""
