"""Simulated engines on real sockets, traces, load generator."""
