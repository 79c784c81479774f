"""A model, a stream, a method and an optimizer of somebody else's, with choices in conf/."""
