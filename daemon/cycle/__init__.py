"""(written with its stage)"""
