"""A server of one model: TF Serving's and KServe's protocols, with dynamic batching."""
