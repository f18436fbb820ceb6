"""Who is asking: accounts, sessions, tickets, and the dependencies that every route builds on."""
