"""Two small worlds whose right answers are known: an enumerable one (exact optima) and a text one (gold reward)."""
