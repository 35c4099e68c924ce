"""Networks, their moving averages, and prediction with them."""
