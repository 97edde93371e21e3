"""What a run will take, counted before it starts: memory, disk, arithmetic and time."""
