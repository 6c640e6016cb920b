"""Detection and instance segmentation; its parts are imported where they are used."""
