"""Real ground photos against windows of the aerial images about them."""
