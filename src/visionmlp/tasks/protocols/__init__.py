"""How frozen features are judged, by any task that learns a backbone: nearest neighbours and a linear classifier."""
