"""A source of one's own: drawings of concepts in a style."""


class Styled:
    """A record of each concept."""

    def __init__(self, style, concepts):
        self.style, self.concepts, self.attribution = style, concepts, f"by {style}"

    def __len__(self):
        return len(self.concepts)

    def __getitem__(self, i):
        return {"id": self.concepts[i], "image": f"{self.style} {self.concepts[i]}", "only": self.style}

    def class_names(self, field):
        return [self.style] if field == "only" else None


def make(style, concepts):
    return Styled(style, list(concepts))
