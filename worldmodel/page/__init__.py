"""A page on which a model is driven: its dream beside the truth. The model runs in the page; a server has the truth."""
