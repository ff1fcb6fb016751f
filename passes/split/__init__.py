"""split: which part of a score is a mask, and which is arithmetic?"""
