def encode_pair(turns, tokenizer, tokens):
    ids, labels = encode_conversation(list(turns), tokenizer, template(model.config.template), (tokens,) * 2, None)
    if len(turns) % 2:
        return list(ids), [IGNORE] * len(ids)
    ends = [place for place, label in enumerate(labels) if label == tokenizer.eos]
    first = ends[-2] + 1 if len(ends) > 1 else 0
    return list(ids), [label if place >= first else IGNORE for place, label in enumerate(labels)]
