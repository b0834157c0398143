"""Ray Data: corpora to documents, chunks, embeddings, neighbours, pairs and scores."""
