"""The codes of devices, files and interruptions, which `ensemble.error_codes` lists with all others."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One entry: the cause as a sentence, and the cure as a phrase."""

    cause: str
    cure: str


RUN_CODES: dict[str, Code] = {
    # 6xx: devices and memory
    "E601": Code("The requested device cannot be used.", "ens doctor shows what is missing and how to install it"),
    "W601": Code("No GPU could be used; running on the CPU.", "ens doctor shows what is missing and how to install it"),
    "E602": Code(
        "The device is out of memory, even with a batch size of one.",
        "close other programs on the device, or predict with fewer members at a time",
    ),
    "W602": Code("The device ran out of memory; the batch size was halved.", "use a smaller --batch to silence this"),
    "E603": Code(
        "The memory budget is too small for a single image, or the machine ran out of memory.",
        "raise --memory, or predict with fewer members at a time; if the machine ran out of memory, lower --memory or --batch",
    ),
    "W603": Code(
        "The memory budget is too small for the requested workers or batch size, which were reduced.",
        "raise --memory to silence this",
    ),
    "E604": Code("A model returned NaN or infinite logits.", "export it with --precision fp32"),
    "E605": Code(
        "A model failed while running.", "run ens doctor; then try --device cpu to see if the device is the cause"
    ),
    "E607": Code(
        "The GPUs of a run are different models, which would not give the same outputs.",
        "choose GPUs of the same model",
    ),
    "E608": Code(
        "The device does not support some of a model's layers; they would run on the CPU.",
        "try --device cuda or --device cpu, or export an int8 model with --quantization symmetric",
    ),
    "I608": Code("TensorRT builds an engine, which is cached for the next run.", "nothing to do"),
    "W608": Code(
        "The models do not fit in device memory together; they run one after another, and images are decoded each time.",
        "use a smaller --batch to run them together",
    ),
    "W609": Code("An optimization is not available; the model runs without it.", "nothing to do"),
    "E620": Code(
        "A benchmark loop gives different outputs than ens predict, so comparing their speed is meaningless.",
        "compare models with the checkpoints that they were exported from",
    ),
    "E621": Code("A benchmark loop crashed.", "give it more memory (-9: it was killed), or fewer --workers"),
    "W622": Code("A loop is left out of the benchmark.", "provide what the message names to include it"),
    "E606": Code(
        "A GPU or OpenVINO gave different outputs than onnxruntime on the CPU, or an int8 model than at its export.",
        "use --device cpu, export an int8 model again on this machine, or --device openvino without :bf16, or another version of OpenVINO or of the GPU's libraries",
    ),
    "I606": Code(
        "The differences of a GPU or OpenVINO from onnxruntime on the CPU, or of an int8 model from its export.",
        "nothing to do",
    ),
    "E610": Code(
        "Workers of the cluster keep dying.", "find the cause, such as too little memory; finished parts are kept"
    ),
    "W610": Code("A worker of the cluster died; its part is computed again.", "nothing to do"),
    "E611": Code(
        "A worker of the cluster cannot run this job.",
        "install the same versions on every machine, and keep the images on storage that all of them share",
    ),
    "E612": Code(
        "A model's answers depend on chance.",
        "export it in evaluation mode (model.eval() in PyTorch), without layers that draw at random",
    ),
    "E613": Code(
        "A model's answer for an image depends on the other images of the batch, or on their order.",
        "export it in evaluation mode (model.eval() in PyTorch); normalize over channels or pixels, not over the batch",
    ),
    "E614": Code(
        "A model's answers do not have the shape that its file declares.",
        "export it again with one row of logits for each image, and one column for each class",
    ),
    "I615": Code("The engine that --device cpu:fastest chose, and the times of both.", "nothing to do"),
    "W615": Code(
        "OpenVINO was not measured for --device cpu:fastest, which chose ONNX Runtime.",
        "install OpenVINO (the extra openvino), or give --device cpu to silence this",
    ),
    "I616": Code(
        "A run with an int8 model that is quantized for OpenVINO is computed in OpenVINO, or was begun in it.",
        "nothing to do; --device cpu computes in ONNX Runtime, in another folder or with --fresh",
    ),
    "W616": Code(
        "An int8 model runs on a device, or in an engine, that it is not quantized for.",
        "use the device that the message names: OpenVINO needs the extra openvino; or export the model again, with --quantization asymmetric for ONNX Runtime on a CPU, with --precision fp16 for a GPU",
    ),
    "I633": Code(
        "The images on which a model of lower precision is judged.",
        "nothing to do if the network was not trained on them, else give others with `--calibrate`",
    ),
    "W633": Code(
        "A model of lower precision is judged on images that the network was trained on.",
        "give images of other people with --calibrate; those of the fold's hold-out part are known to be others",
    ),
    # 7xx: the file system
    "E701": Code(
        "There is no room: a full disk, a quota that is used up, or a limit on the size of a file; finished parts are kept.",
        "make the room that the message names, and run the same command again",
    ),
    "E702": Code("A file or folder cannot be written.", "choose another path with -o, or grant write permission"),
    "E703": Code("Another run is writing to the same folder.", "wait for it, or choose another folder"),
    "E704": Code("The folder contains a different run.", "choose another folder, or start over with --fresh"),
    "W705": Code("A finished part was damaged or its images changed; it is computed again.", "nothing to do"),
    "E707": Code("A file does not exist or cannot be read.", "check the path"),
    "E740": Code("The working folder was removed.", "change to a folder that exists (cd) and run the command again"),
    "E760": Code("Two outputs of a command would be the same file.", "choose another path with -o"),
    "E761": Code(
        "A configuration file is not TOML, or has unknown names or wrong values.",
        "ens init -o other.toml writes all names; ens --no-config COMMAND does not read ens.toml",
    ),
    "I760": Code("Options were read from a configuration file.", "leave it out with ens --no-config COMMAND"),
    "E762": Code("The file to be written by ens init exists.", "choose another with -o, or remove it"),
    # 8xx: stopped from outside
    "E801": Code(
        "The command was stopped by a signal; finished parts are kept.",
        "run the same command again; ens audit, crop, export, predict, probe, submit and train resume",
    ),
    # 802 and up: fused files, and what is made of them
    "E802": Code(
        "The recipe's answer for one image depends on other images, so one image alone has none.",
        "make a recipe without what the message names, with ens blend",
    ),
    "E803": Code(
        "A view of the recipe computes new pixels, which a fused file does not do.",
        "make a recipe with views that move pixels only: identity, hflip, vflip, rot90, shift",
    ),
    "E804": Code(
        "A member's images are resized in a way that a fused file does not do.",
        "export or train the member with another --resizer or --interpolation; ens submit takes it as it is",
    ),
    "E805": Code(
        "The members' networks cannot be joined in one file.",
        "export the members again with this version of ens; ens submit takes them as they are",
    ),
    "E806": Code(
        "The fused file does not give the answers of ens submit, and was not written.",
        "check on other images with --check-images; ens submit with the recipe and the models is right",
    ),
    "E807": Code("A file is not a fused ensemble.", "write one with ens fuse"),
    "E830": Code(
        "A fused ensemble cannot be run on a page.",
        "leave the members of face crops out of the recipe: a page has no face detector",
    ),
    "E831": Code(
        "The runtime of a page, onnxruntime-web, could not be fetched with npm.",
        "install npm, or give the package with --runtime",
    ),
    "E832": Code(
        "The runtime of a page is not the version that was tested, or is damaged.",
        "leave out --runtime, or give the version that the message names, as npm pack writes it",
    ),
    "I830": Code(
        "A page has no evidence map.",
        "nothing to do; or export a member with ens export --features, and keep the view identity",
    ),
    "W830": Code(
        "A page is large, and takes long to load on a phone.",
        "use fewer or smaller members, or export them with --precision int8 --quantization asymmetric",
    ),
    "E833": Code("The folder for a page holds other files.", "choose an empty or a new folder with -o"),
    "E808": Code(
        "No member can give class-activation maps.",
        "fuse without --maps, or export members with --features and pooled linear heads",
    ),
    "E840": Code(
        "A fused file has no class-activation maps, which ens explain draws.",
        "fuse it again with ens fuse --maps, or explain one of its members: ens explain models/MEMBER.onnx",
    ),
    "I840": Code("Which answers and which maps ens explain draws for a fused file.", "nothing to do"),
    "I802": Code("The maps of a fused file are not those of its strongest member.", "nothing to do"),
    "I803": Code("The predictions of a fused file have probabilities, and not its decisions.", "nothing to do"),
    "E811": Code(
        "The folder of a bundle holds other files.", "name a new folder with -o, or one that ens bundle wrote"
    ),
    "E812": Code(
        "A file does not have the scores of an evaluation of the ensemble.",
        "write it with ens evaluate submission.csv --truth truth.csv --json, of the ensemble's submission alone",
    ),
    "E813": Code(
        "A bundle could not be uploaded; it is written on this machine.",
        "look at the message; huggingface-cli login stores a token, and --push again uploads again",
    ),
    "E814": Code(
        "The packages of a bundle could not be fetched.",
        "read pip's output; it fetches the versions that are installed here",
    ),
    "I811": Code("The size of the packages in a bundle.", "nothing to do"),
    "W811": Code("Something is missing in the description of a bundle.", "give the option that the message names"),
    "W802": Code(
        "A fused file was compared with ens submit on drawn pictures only.", "give photographs with --check-images"
    ),
    # 86x: faces and labels
    "W861": Code(
        "There are too many images to look for cropped copies.",
        "give --crops yes to look for them anyway",
    ),
    "I863": Code("An audit resumes one that did not end.", "nothing to do"),
    "W864": Code(
        "An audit found label fixes of other content in its folder, and kept them under another name.",
        "compare both files; lines that were deleted from the old one are in the new one again",
    ),
    "I862": Code("Labels were not judged.", "give the out-of-fold predictions of a model with --oof"),
    "I860": Code(
        "Which face detector is used, and why.",
        "name one with --detector: boxes for training and prediction need the same",
    ),
}
