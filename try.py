import torch, warnings
warnings.simplefilter("error")
from lmms.configs.lora import LoraConfig
from lmms.train.lora import *
from lmms.train.optim import set_trained
from lmms.train.model import build_model, materialize, init_random
from tests.train.helpers import *
for fam in FAMILIES:
    m = build_model(tiny_config(fam), "none")
    train = {"default":"lora"}
    lc = LoraConfig(rank=4)
    add_lora(m, train, lc)
    set_trained(m, train, lc)
    assert all(p.is_meta for p in m.parameters())
    materialize(m, torch.device("cpu")); init_random(m, 0); init_lora(m, 0)
    plain = tiny_model(fam)
    d = dict(plain.named_parameters())
    for n,p in m.named_parameters():
        if not is_lora(n): assert torch.equal(p, d["hf."+parameter_name(n)]), n
    tr=[n for n,p in m.named_parameters() if p.requires_grad]
    print(fam, len(tr), tr[:2], m.hf.peft_config["default"].target_modules)
    batch = joined([make_pack([talk(5, 12, [picture(1)] if fam in VISION_FAMILIES else [])])], tiny_recipe(fam))
    a=m(batch, batch.images>0)[0]; b=plain(batch, batch.images>0)[0]
    print(float(a.detach()), float(b.detach())); a.backward()
    merge_lora(m)
