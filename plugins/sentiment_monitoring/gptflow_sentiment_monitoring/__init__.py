"""Sentiment, topics and entities of financial posts, and alerts on surges of bad news."""
