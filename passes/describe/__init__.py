"""What a site is, for people: the words for it, its terms, and its code. Nothing here decides anything."""
