"""Model configurations, generation options and everything that derives from them; standard library only."""
