"""The search itself: from a request to verified fronts."""
