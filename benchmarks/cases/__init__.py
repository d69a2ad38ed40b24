"""One module per op; each exposes `cases(device) -> list[Case]`."""
