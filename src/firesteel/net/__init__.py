"""How workers talk: the verbs (`protocol`), and the real nets that carry them out."""
