"""One port (`activities.ports.Runtime`), a driver per place where dev servers can live."""
