"""Tables, figures and the page of a study, made from its files alone: records, scores, cards, manifests."""
