"""Multi-turn customer service with a knowledge base, checked answers and hand-off."""
