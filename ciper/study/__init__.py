"""The accuracy study: what is trained and evaluated, and the tables and plots made of it."""
