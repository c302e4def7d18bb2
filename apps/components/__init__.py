"""Pieces of pages: cards, tables, plots, texts. They are given data and know nothing of the hub."""
