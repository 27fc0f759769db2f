"""How new users and new items are served; :class:`~metarec.Recommender` is the way in."""
