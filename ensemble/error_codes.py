"""The catalogue of codes: what each means and what to do about it.

``E`` stops the command, ``W`` warns, ``I`` informs. Codes are part of the interface: a code never changes its meaning.
`ens explain-error CODE` prints an entry.
"""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One entry: the cause in a sentence, and the cure."""

    cause: str
    cure: str


CODES: dict[str, Code] = {
    # 2xx: options
    "E200": Code("The command line is not understood.", "see the command's --help"),
    "E201": Code(
        "A view is not known or does not fit the model.",
        "views: identity, hflip, vflip, rot90, shift:<px>, scale:<factor>, crop5",
    ),
    "E202": Code("A pool is not known.", "pools: linear, logit, geometric, power:<p>, hard"),
    "E203": Code(
        "A device is not known.",
        "devices: auto, cpu, cuda, cuda:<index>, cuda:<index>,<index>, tensorrt, tensorrt:<index>, openvino, openvino:bf16",
    ),
    "E204": Code("An option's value is not valid, or options contradict each other.", "see the command's --help"),
    "E205": Code("A package that this command needs is not installed.", "install it; ens doctor prints the command"),
    "E206": Code(
        "A model was trained on face crops, and no face boxes were given.",
        "find the faces once with ens crop IMAGES -o boxes.parquet, then give --boxes boxes.parquet",
    ),
    "E207": Code(
        "A recipe's answers cannot be known early.",
        "leave --early-exit out: every member then sees every image, and a run that is stopped still goes on",
    ),
    # 3xx: images, id lists, labels
    "W301": Code(
        "A JPEG lacks its end marker, but all its pixels are there.",
        "nothing is lost; re-save the file to silence this",
    ),
    "E301": Code("An image is damaged or ends before its last pixel.", "copy or download the file again"),
    "E302": Code("An image file is empty.", "copy or download the file again"),
    "E303": Code(
        "A file named like an image is something else.",
        "replace it by the real image (a Git-LFS pointer: run git lfs pull)",
    ),
    "I304": Code("An image's content is of another format than its name says.", "nothing to do: the content decides"),
    "W305": Code(
        "An image's EXIF data cannot be read; its pixels are used as stored.", "check that the picture is upright"
    ),
    "I306": Code("An image has several frames; the first is used.", "nothing to do, unless another frame was meant"),
    "E307": Code(
        "An image has more pixels than the limit of 64 million pixels.",
        "make it smaller; the limit is fixed, so that no image can fill the memory",
    ),
    "W308": Code(
        "An image is very small or very narrow.", "check that it is a photograph; it was predicted all the same"
    ),
    "E309": Code("An image's format or pixel type is not supported.", "convert it to JPEG or PNG"),
    "I310": Code("Names matched after Unicode normalisation.", "nothing to do: the id list's spelling is kept"),
    "E311": Code("Two files have the same name after Unicode normalisation.", "remove or rename one of them"),
    "E312": Code(
        "A listed image exists only in another case of letters.",
        "rename the file, or write the id as the file is called",
    ),
    "E313": Code("An id is listed more than once.", "keep each id once"),
    "E314": Code("Listed images are missing.", "put them into the image folder, or list only what is there"),
    "I315": Code("The folder holds files that are not in the id list; they are ignored.", "nothing to do"),
    "E316": Code(
        "A folder holds no images.",
        "name the folder with the images themselves (jpg, jpeg, png, webp, bmp, gif, tif, avif)",
    ),
    "I317": Code(
        "Folders behind symbolic links were not entered.", "name the folder itself, or link the files one by one"
    ),
    "E318": Code("A file may not be read.", "give yourself the right to read it (chmod u+r)"),
    "E319": Code(
        "A file changed while it was being read.", "wait until nothing writes to the folder and run the command again"
    ),
    "E320": Code("An image's path is not a regular file.", "replace it by the image itself"),
    "E321": Code("A path is too long for the file system.", "shorten the file's or the folder's name"),
    "E322": Code(
        "A table lacks a column, or its rows do not fit its header.",
        "the file needs a header line; see the message for the columns it has",
    ),
    "E323": Code("An id leads out of the image folder.", "write ids as paths below the folder, with no .. in them"),
    "W324": Code(
        "An id starts with =, +, - or @; it is written as it is.",
        "open the file as text: a spreadsheet may take the id for a formula (in errors.csv an apostrophe prevents that)",
    ),
    "E325": Code(
        "An image crashes its decoder, or takes more memory than there is, in a process of its own.",
        "save it again with another program, or leave it out: --on-bad-image says what becomes of it",
    ),
    "W325": Code(
        "A run died without a word; the images that it was at are first tried in a process of their own.",
        "nothing to do: an image that crashes its decoder is named with E325, and the others go on",
    ),
    "E326": Code(
        "Images could not be read; all others were done and are kept.",
        "mend the files in errors.csv and run the same command again: only what is missing is redone; "
        "or go on without them: ens predict and ens submit take --on-bad-image fill or skip "
        "(another list of images needs another folder or --fresh)",
    ),
    "W326": Code("Images could not be read; they are left out or filled.", "mend the files in errors.csv, run again"),
    "E327": Code("An image's name is not valid Unicode.", "rename the file: ids are written as UTF-8"),
    "I328": Code("A table is not UTF-8; it was read as cp949 (Korean).", "nothing to do if the names look right"),
    "E329": Code(
        "A Python value is not an image that a model takes.",
        "give a path, a PIL image, or a uint8 RGB array of shape (height, width, 3)",
    ),
    "E330": Code(
        "A truth table does not fit the answers it is compared with.",
        "it needs one true class for every id, and each id once",
    ),
    "E331": Code(
        "A label space is not valid.",
        'write a JSON list of class names, or {"axes": [{"name": ..., "values": [...]}, ...]}',
    ),
    "E340": Code(
        "A training folder does not have the layout that was expected.",
        "train.csv with the columns id, gender, race, age, path, and images/<path>/<stem>.jpg; or one folder a class; "
        "or a CSV of path,label and, where known, person",
    ),
    "E341": Code("A class has fewer people than there are folds.", "ask for fewer folds, or add people of that class"),
    "E342": Code(
        "A label fix is not understood.",
        "columns id,field,value,source; fields gender, age, swap, label and drop; the id is a person or an image",
    ),
    "E343": Code("Two label fixes contradict each other.", "leave one of the sources out with --without SOURCE"),
    "I344": Code("Label fixes were applied.", "nothing to do; --without SOURCE leaves a source's fixes out"),
    "W345": Code(
        "Label fixes name people or images that are not there.", "check that the fixes belong to this data set"
    ),
    "E346": Code(
        "An image with a predicted label is one that is trained with anyway, and held out in some fold.",
        "predict images that are not in the training data",
    ),
    "W347": Code(
        "Images are learned with the class that was predicted for them; the rules of a contest may forbid that.",
        "read the rules; without --pseudo only labelled images are learned",
    ),
    "I348": Code("How many images of each class are learned with a predicted label.", "nothing to do"),
    "E350": Code("A file of face boxes cannot be read.", "make it with ens crop IMAGES -o boxes.parquet"),
    "E351": Code(
        "Images are not in the file of face boxes.",
        "run ens crop on the folder that holds them; names are relative to that folder",
    ),
    "I352": Code("Face boxes were given, but no model uses them.", "nothing to do"),
    # 4xx: checkpoints and ONNX files
    "E401": Code(
        "A checkpoint wants to run code while it is loaded; it was refused.",
        "ask for a state dict (torch.save(model.state_dict(), ...)) or safetensors",
    ),
    "E402": Code(
        "A checkpoint holds a whole pickled module instead of its weights.",
        "where it was trained: torch.save(model.state_dict(), 'weights.pth')",
    ),
    "E403": Code("A checkpoint is incomplete or damaged.", "download or copy it again"),
    "E404": Code(
        "A file that should hold weights is something else.",
        "download the real file (a Git-LFS pointer: run git lfs pull)",
    ),
    "E405": Code("A checkpoint's checksum is wrong: bits changed since it was saved.", "download or copy it again"),
    "W406": Code(
        "A checkpoint is in a format without checksums; damage cannot be seen.", "save it again with today's torch.save"
    ),
    "I407": Code("A prefix was taken off every key, or keys that are not the model's were left out.", "nothing to do"),
    "I408": Code(
        "A checkpoint holds raw and averaged (EMA) weights; one of them was chosen.",
        "choose with --weights raw or --weights ema",
    ),
    "I409": Code("Weights in another precision were converted to float32.", "nothing to do"),
    "E410": Code("The weights do not fit the architecture.", "name the architecture that was trained with --arch"),
    "E411": Code(
        "The classifier's outputs and the label space differ in number.",
        "give the label space the model was trained on with --labels",
    ),
    "E412": Code("A weight is NaN or infinite.", "the training diverged: take an earlier checkpoint"),
    "W413": Code("A weight looks untrained.", "check that this is the checkpoint you meant"),
    "E414": Code(
        "The exported model does not give the checkpoint's answers; no model was written.",
        "please report it with the figures above",
    ),
    "E415": Code("The architecture cannot be found out from the weights.", "name it with --arch (any timm name)"),
    "E416": Code("The weights fit more than one architecture.", "name the one that was trained with --arch"),
    "E417": Code(
        "A checkpoint holds no weights that can be recognised.",
        "save the model's state dict: torch.save(model.state_dict(), ...)",
    ),
    "I418": Code("The weights have torchvision's names; they were mapped to timm's.", "nothing to do"),
    "I419": Code("The architecture was found out from the weights.", "nothing to do; --arch overrides it"),
    "E420": Code("A file is not a valid ONNX model.", "export or download it again"),
    "E421": Code(
        "An ONNX model is too new for the installed onnxruntime.", "upgrade onnxruntime, or export the model again"
    ),
    "E422": Code(
        "An ONNX model refers to data outside its file.", "models are single files: save it with its weights inside"
    ),
    "E423": Code("An ONNX model carries no ens card.", "export it with ens export, which writes one"),
    "E424": Code("An ONNX model's inputs or outputs are not as its card says.", "export it again with ens export"),
    "E425": Code(
        "An ONNX model needs operators that onnxruntime does not bring.", "export it without custom operators"
    ),
    "E426": Code(
        "An architecture cannot be turned into ONNX.",
        "export another architecture, or report this one by its timm name",
    ),
    "E427": Code("A model card cannot be read.", "export the model again with this version of ens, or upgrade ens"),
    "E428": Code("Two models have the same member name.", "export one of them again with another --member"),
    "E429": Code(
        "An ONNX model is larger than any honest one: in bytes, parts, nodes or depth.",
        "export it again with ens export; it was not given to onnxruntime",
    ),
    "E430": Code(
        "A checkpoint does not hold the weights that were asked for.", "leave --weights out, or ask for what it holds"
    ),
    "E431": Code("A model has no output features.", "export it again with ens export --features"),
    "E432": Code(
        "A model's classes are not weighted sums of its averaged features, so it has no class-activation maps.",
        "explain a model that ends in global average pooling and one linear layer, such as a ResNet or an EfficientNet",
    ),
    "E436": Code(
        "A model of lower precision answers too differently from float32 on real images; no model was written.",
        "calibrate on more and more typical images, or export with --precision fp32; fp16 loses less than int8",
    ),
    "I437": Code("Layers of an int8 model stay in float32.", "nothing to do: on integers they change too many answers"),
    "I438": Code("An older int8 model runs on slower kernels, which are exact.", "export it again for full speed"),
    "E440": Code("A training diverged: its loss is NaN or infinite.", "lower the learning rate"),
    "I441": Code("A training starts from the weights of a file.", "nothing to do"),
    "E442": Code(
        "A member's folder holds a training with other settings.",
        "name another --member, or train it again with --fresh",
    ),
    "W443": Code("A logger of a training failed.", "nothing: the CSV beside the weights has every epoch"),
    "E444": Code(
        "Reading a checkpoint would take more memory or time than any honest one does; it was refused.",
        "ask for a state dict (torch.save(model.state_dict(), ...)) or safetensors",
    ),
    "I445": Code("A training goes on where an earlier one stopped.", "nothing to do; --fresh begins anew"),
    "E446": Code(
        "The processes of a training do not see the same data.",
        "keep images, boxes and the folder of -o where all machines read them, and start all with the same options",
    ),
    "E447": Code(
        "A process of a training lost the others.",
        "look for the error of the one that ended first; run again, and the training goes on after its last epoch",
    ),
    # 5xx: predictions, recipes, submissions
    "E501": Code("Members do not share one label space.", "blend only models of the same classes"),
    "E502": Code(
        "Logits and probabilities are mixed, or the kind of an array is not stated.",
        "say what the file holds with --as logits or --as probabilities",
    ),
    "E504": Code("Members predict different images.", "predict the same list of images with every member"),
    "E505": Code("A prediction is NaN or infinite.", "predict again; in half precision, export with --precision fp32"),
    "W506": Code("A member gives every image the same answer.", "leave it out, or check its preprocessing"),
    "W507": Code("Two members are identical.", "leave one of them out, or its vote counts twice"),
    "E508": Code(
        "Weights do not fit.",
        "give every group a finite weight of zero or more, at least one above zero: --weights a=2,b=1",
    ),
    "E511": Code(
        "Predictions that should be out-of-fold are of images that a model was trained on.",
        "let each fold's model predict its own holdout alone, and name those predictions with --oof",
    ),
    "E512": Code(
        "One person's images are in the holdouts of two folds.",
        "split the folds by person and train again: what is learned from these would look too good",
    ),
    "E513": Code(
        "Predictions are not finished.", "run the same ens predict command again: it goes on where it stopped"
    ),
    "E514": Code("A path does not hold predictions.", "name the folder of one member, as ens predict printed it"),
    "E515": Code("Two predictions have the same member name.", "blend each member once"),
    "E516": Code("A view is not in the predictions.", "predict with that view, or leave it out of --views"),
    "E517": Code(
        "A recipe does not fit the predictions.",
        "apply it to predictions of the members it names, with the views it names",
    ),
    "E518": Code("A recipe cannot be read.", "make it again with ens blend --save"),
    "W519": Code(
        "A member has the same classes as the others in another order.",
        "nothing, if the class numbers of the first member by name are those the contest wants",
    ),
    "E520": Code("A submission is not valid.", "mend the faults listed above, or write it with ens blend --like"),
    "W521": Code(
        "A submission gives every image the same class.", "check the members: ens evaluate shows each of them"
    ),
    "I522": Code(
        "The predictions are not those that the recipe was made from.", "nothing to do, if they are of other images"
    ),
    "W523": Code(
        "The truth names no persons: pictures of one face may be on both sides of a split, and scores look too good.",
        "add a column person to the truth",
    ),
    "I524": Code("Classes with few images: what is learned about them is held back.", "nothing to do"),
    "E525": Code("There is too little truth to learn a blend from.", "blend with --method mean, or label more images"),
    "E530": Code(
        "A recipe names members for which there is no model.",
        "put the models that ens export wrote for those members into the folder, or make a recipe without them",
    ),
    "I531": Code("There are models that the recipe does not weigh; they are not run.", "nothing to do"),
    "W532": Code(
        "The time allowed is too short for the whole recipe; members were left out.",
        "allow more with --budget, or take a faster device",
    ),
    "W533": Code(
        "There are too few images to certify what an early exit costs.",
        "predict more out-of-fold images, or use --early-exit exact, which needs none",
    ),
    "E534": Code(
        "Predictions or a submission lack images that could not be read.",
        "mend the images and predict again, or predict with --on-bad-image fill; --allow-missing leaves them out",
    ),
    "W534": Code("A submission lacks images, which was allowed.", "mend them: most contests refuse missing rows"),
    "W535": Code(
        "Images have the class prior in place of a prediction, because they could not be read.",
        "mend the files in errors.csv and predict again: what was filled is then computed",
    ),
    # 6xx: devices and memory
    "E601": Code(
        "A device was asked for and cannot be had.",
        "run ens doctor: it names what is missing and the line that installs it",
    ),
    "W601": Code(
        "No GPU could be used; the CPU is used instead.",
        "run ens doctor: it names what is missing and the line that installs it",
    ),
    "E602": Code(
        "The device's memory is too small, even for a batch of one.",
        "close other programs on the device, or predict fewer members at a time",
    ),
    "W602": Code("The device ran out of memory; the batch was halved.", "give a smaller --batch to silence this"),
    "E603": Code(
        "The memory allowed is too small for a single image, or the machine's memory ran out.",
        "allow more with --memory, or predict fewer members at a time; where it ran out, lower --memory or --batch",
    ),
    "W603": Code(
        "The memory allowed is too small for all workers or for the batch that was asked for; there are fewer.",
        "allow more with --memory to silence this",
    ),
    "E604": Code("A model gave NaN or infinite logits.", "export it with --precision fp32"),
    "E605": Code(
        "A model failed while running.", "run ens doctor; then try --device cpu to see whether the device is the cause"
    ),
    "E607": Code(
        "The GPUs of one run are of different kinds, and would not give the same answers.", "name GPUs of one kind"
    ),
    "E608": Code(
        "The device does not take a model's layers; they would run on the CPU.",
        "try --device cuda or --device cpu, or export the model again",
    ),
    "I608": Code("TensorRT builds an engine; it is kept for the next run.", "nothing to do"),
    "W608": Code(
        "The device has no memory for all models at once; they run in turn, and the images are decoded for each turn.",
        "give a smaller --batch to run them together",
    ),
    "W609": Code("A way to run a model faster could not be used; it runs the ordinary way.", "nothing to do"),
    "E620": Code(
        "A loop of the benchmark gives other answers than ens predict; to compare their speed would mean nothing.",
        "compare what comes from one training: the models, and the checkpoints that they were exported from",
    ),
    "E621": Code(
        "A loop of the benchmark died.", "give it more memory (a killed process has status -9), or fewer --workers"
    ),
    "W622": Code("A loop is left out of the benchmark.", "give what the message names to compare with it too"),
    "E606": Code(
        "A GPU, or a runtime other than onnxruntime, gave other answers than onnxruntime on the CPU.",
        "use --device cpu, or --device openvino without :bf16, or another version of OpenVINO or of the GPU's libraries",
    ),
    "I606": Code(
        "A GPU or another runtime was compared with onnxruntime on the CPU; these are the figures.", "nothing to do"
    ),
    "E610": Code(
        "Workers of the cluster keep ending.",
        "look for what ends them, such as too little memory; finished parts are kept",
    ),
    "W610": Code("A worker of the cluster ended; what it was at is done again.", "nothing to do"),
    "E611": Code(
        "A worker of the cluster cannot do this work.",
        "install the same versions on every machine, and keep the images where all of them read",
    ),
    # 7xx: the file system
    "E701": Code("The disk is full; what was finished is kept.", "free some space and run the same command again"),
    "E702": Code(
        "A file or folder cannot be written.", "choose another place with -o, or give yourself the right to write there"
    ),
    "E703": Code("Another run is writing to the same folder.", "wait for it, or choose another folder"),
    "E704": Code("The folder holds another run.", "choose another folder, or start over with --fresh"),
    "W705": Code("A finished part was damaged or its images changed; it is done again.", "nothing to do"),
    "E707": Code("A file does not exist or cannot be read.", "check the path"),
    # 8xx: stopped from outside
    "E801": Code(
        "The command was stopped by a signal; what was finished is kept.",
        "run the same command again; ens crop, train, predict and submit go on where they stopped",
    ),
}
