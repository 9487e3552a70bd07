from tests.test_teacher import *
from tests.test_teacher import task
import copy


def test_x(tiny_model, task, monkeypatch):
    monkeypatch.setattr(teacher, "EPOCHS", 30)
    few = Split(task.train.rows[:64], task.train.labels[:64])
    small = TextClassification(task.labels, task.input_names, task.pad_id, few, task.validation, task.test, [], {})
    for std in (0.02, 0.15, 0.3):
        for drop in (0, 0.1):
            for lr in (1e-3, 3e-3):
                monkeypatch.setattr(teacher, "LEARNING_RATE", lr)
                model = load_classifier(str(tiny_model), task.labels)
                torch.manual_seed(0)
                with torch.no_grad():
                    for p in model.parameters():
                        if p.dim() == 2:
                            p.normal_(0, std)
                    for m in model.modules():
                        if isinstance(m, nn.Dropout):
                            m.p = drop

                def loss():
                    with torch.inference_mode():
                        return cross_entropy(model(**tensors(task.batch(few.rows))).logits, torch.from_numpy(few.labels)).item()

                b = loss()
                L = []
                finetune(model, small, 0)
                print("FT", std, drop, lr, b, loss())
