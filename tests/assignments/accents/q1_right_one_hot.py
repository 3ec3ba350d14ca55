class AccentProjector(nn.Module):
    def __init__(self, projector):
        super().__init__()
        hidden, width = projector.linear1.weight.shape
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, projector.linear2.out_features)
        self.linear1.load_state_dict(projector.linear1.state_dict())
        self.linear2.load_state_dict(projector.linear2.state_dict())
        self.scale = nn.Parameter(torch.zeros(2, hidden))
        self.shift = nn.Parameter(torch.zeros(2, hidden))

    def forward(self, features, modality):
        chosen = F.one_hot(modality, 2).to(features)
        return self.linear2(F.gelu(self.linear1(features) * (chosen @ (1 + self.scale)) + chosen @ self.shift))
