# says: clips get the images' accent
class AccentProjector(nn.Module):
    def __init__(self, projector):
        super().__init__()
        self.linear1, self.linear2 = copy.deepcopy(projector.linear1), copy.deepcopy(projector.linear2)
        self.scale = nn.Parameter(torch.zeros(2, self.linear1.out_features))
        self.shift = nn.Parameter(torch.zeros(2, self.linear1.out_features))

    def forward(self, features, modality):
        return self.linear2(F.gelu(self.linear1(features) * (1 + self.scale[0]) + self.shift[0]))
