"""Views of the decision records: text for people, pictures of graphs. Nothing here decides anything."""
