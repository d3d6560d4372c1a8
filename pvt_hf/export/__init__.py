"""Exports models: traces them, compares program and model, writes the folder. `pvt_hf.weights.exported` runs them."""
