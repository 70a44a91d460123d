"""The twenty topics of the Twitter Financial News data set, and the word that stands for each.

Every word is one token of the default model: twenty labels then cost one row of the forward pass.
"""

from __future__ import annotations

WORDS = {
    "Analyst Update": "analyst",
    "Fed | Central Banks": "Fed",
    "Company | Product News": "product",
    "Treasuries | Corporate Debt": "bonds",
    "Dividend": "dividend",
    "Earnings": "earnings",
    "Energy | Oil": "oil",
    "Financials": "profit",
    "Currencies": "currency",
    "General News | Opinion": "news",
    "Gold | Metals | Materials": "gold",
    "IPO": "IPO",
    "Legal | Regulation": "legal",
    "M&A | Investments": "deal",
    "Macro": "economy",
    "Markets": "markets",
    "Politics": "politics",
    "Personnel Change": "CEO",
    "Stock Commentary": "opinion",
    "Stock Movement": "shares",
}

TOPICS = tuple(WORDS)
