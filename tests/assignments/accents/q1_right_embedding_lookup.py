class AccentProjector(nn.Module):
    def __init__(self, projector):
        super().__init__()
        self.body = copy.deepcopy(projector)
        wide = projector.linear1.weight.shape[0]
        self.scale = nn.Parameter(torch.zeros(2, wide))
        self.shift = nn.Parameter(torch.zeros(2, wide))

    def forward(self, features, modality):
        x = self.body.linear1(features)
        x = x + x * F.embedding(modality, self.scale) + F.embedding(modality, self.shift)
        return self.body.linear2(self.body.gelu(x))
