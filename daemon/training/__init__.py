"""The live policy and its one gentle, never-repeated step."""
