"""How many networks are fitted at once, and fast. Nothing outside knows how, and no change here changes a result."""
