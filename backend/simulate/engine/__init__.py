"""A simulated vLLM: one pure core (blocks, scheduler, hashes) and a server around it that speaks vLLM's sockets."""
