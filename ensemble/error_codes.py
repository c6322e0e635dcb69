"""The catalog of codes: the cause of each and its fix.

``E`` stops the command, ``W`` warns, ``I`` informs. Codes are part of the interface: a code never changes its meaning.
`ens explain-error CODE` prints an entry.
"""

from __future__ import annotations

from ensemble.model_codes import MODEL_CODES
from ensemble.prediction_codes import PREDICTION_CODES
from ensemble.run_codes import RUN_CODES, Code

CODES: dict[str, Code] = {
    # 2xx: options
    "E200": Code("The command line is not valid.", "see the command's --help"),
    "E201": Code(
        "A view is unknown or does not fit the model.",
        "views: identity, hflip, vflip, rot90, shift:<px>, scale:<factor>, crop5",
    ),
    "E202": Code("A pooling method is unknown.", "pools: linear, logit, geometric, power:<p>, hard, rank"),
    "E203": Code(
        "A device is unknown.",
        "devices: auto, cpu, cpu:fastest, cuda, cuda:<index>, cuda:<index>,<index>, tensorrt, tensorrt:<index>, openvino, openvino:bf16, or a plugin provider that ens doctor lists",
    ),
    "E204": Code("An option's value is not valid, or options contradict each other.", "see the command's --help"),
    "E205": Code("A package that this command needs is not installed.", "install it; ens doctor prints the command"),
    "E206": Code(
        "A model was trained on face crops, and no face boxes were given.",
        "find the faces once with ens crop IMAGES -o boxes.parquet, then give --boxes boxes.parquet",
    ),
    "E207": Code(
        "A recipe does not allow early exit.",
        "leave out --early-exit: every member then predicts every image, and an interrupted run still resumes",
    ),
    # 3xx: images, id lists, labels
    "W301": Code(
        "A JPEG lacks its end marker, but all its pixels are there.",
        "nothing is lost; re-save the file to silence this",
    ),
    "E301": Code("An image is damaged or ends before its last pixel.", "copy or download the file again"),
    "E302": Code("An image file is empty.", "copy or download the file again"),
    "E303": Code(
        "A file with an image extension is not an image.",
        "replace it with the real image (for a Git LFS pointer, run git lfs pull)",
    ),
    "I304": Code("An image's format differs from its file extension.", "nothing to do: the content decides"),
    "W305": Code("The EXIF data cannot be read; pixels are used as stored.", "check that the image is upright"),
    "I306": Code("An image has several frames; the first is used.", "nothing to do, unless you need another frame"),
    "E307": Code(
        "An image is too large: over 64 million pixels or 65,535 px on a side, or far more memory than its file.",
        "make it smaller; the limits are fixed, so that no image can fill the memory",
    ),
    "W308": Code("An image is very small or very narrow.", "check that it is a photograph; it was predicted anyway"),
    "E309": Code("An image's format or pixel type is not supported.", "convert it to JPEG or PNG"),
    "I310": Code("Names matched only after Unicode normalization.", "nothing to do: the id list's spelling is kept"),
    "E311": Code("Two files have the same name after Unicode normalization.", "remove or rename one of them"),
    "E312": Code(
        "A listed image exists only in a different letter case.", "rename the file, or spell the id like the file name"
    ),
    "E313": Code("An id is listed more than once.", "keep each id once"),
    "E314": Code("Listed images are missing.", "add them to the image folder, or remove them from the list"),
    "I315": Code("The folder contains files that are not in the id list; they are ignored.", "nothing to do"),
    "E316": Code(
        "A folder contains no images.",
        "give the folder that contains the image files (JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF)",
    ),
    "I317": Code("Symbolic links to folders are not followed.", "give the folder itself, or link the files"),
    "E318": Code("There is no permission to read a file.", "grant read permission (chmod u+r)"),
    "E319": Code(
        "A file changed while it was being read.", "wait until nothing writes to the folder, then run the command again"
    ),
    "E320": Code("An image's path is not a regular file.", "replace it with the image itself"),
    "E321": Code("A path is too long for the file system.", "shorten the file's or the folder's name"),
    "E322": Code(
        "A table lacks a column, or its rows do not fit its header.",
        "the file needs a header line; see the message for the columns it has",
    ),
    "E323": Code("An id points outside the image folder.", "write ids as relative paths below the folder"),
    "W324": Code(
        "An id starts with =, +, - or @; it is written unchanged.",
        "open the file as text: a spreadsheet may read the id as a formula (in errors.csv an apostrophe prevents that)",
    ),
    "E325": Code(
        "Decoding an image crashes the decoder or exhausts the memory, as a subprocess has shown.",
        "save it again with another program, or leave it out with --on-bad-image fill or skip",
    ),
    "W325": Code(
        "The previous run crashed; the images it was processing are decoded in a subprocess first.",
        "nothing to do: an image that crashes the decoder is reported as E325, and the others are predicted",
    ),
    "E326": Code(
        "Images could not be read; all others are done and kept.",
        "fix the files in errors.csv and run the same command again, which computes only what is missing; "
        "or continue without them: ens predict and ens submit take --on-bad-image fill or skip "
        "(a different list of images needs another folder or --fresh)",
    ),
    "W326": Code("Images could not be read; they are left out or filled.", "fix the files in errors.csv and run again"),
    "E327": Code("An image's name is not valid Unicode.", "rename the file: ids are written as UTF-8"),
    "I328": Code(
        "A table is not UTF-8; it was read as cp949 (Korean) or UTF-16.", "nothing to do if the names look right"
    ),
    "E329": Code(
        "A Python value is not an image that a model takes.",
        "give a path, a PIL image, or a uint8 RGB array of shape (height, width, 3)",
    ),
    "I330": Code("Predictions of images that the training data does not have are passed over.", "nothing to do"),
    "E330": Code(
        "The ground truth does not match the predictions it is compared with.",
        "it needs one class per id, and each id once",
    ),
    "W330": Code(
        "All images of a ground truth are of one class.", "a sample submission is no ground truth: check --truth"
    ),
    "E331": Code(
        "A label space is not valid.",
        'write a JSON list of class names, {"0": "cat", "1": "dog"}, {"axes": [{"name": ..., "values": [...]}, ...]}, or a text of one name per line',
    ),
    "E336": Code(
        "The columns or cells of a table of training labels are not understood.",
        "name them with --id-column, --label-column (repeatable), --group-column, --label-separator and --images",
    ),
    "E337": Code(
        "Rows of one image in a table of training labels contradict each other.",
        "keep one row per image; or, if an image may have several labels, add --activation sigmoid",
    ),
    "I338": Code(
        "How ambiguous training data was read.",
        "nothing to do if it is right; or see the option",
    ),
    "W338": Code(
        "A part of the training data is not used, cannot be balanced over the folds, or is a class of one split alone.",
        "see the message",
    ),
    "E340": Code(
        "A training folder does not have one of the supported layouts.",
        "one folder per class; or a table (CSV, Parquet) of images and labels; or the mask contest's train.csv with the "
        "columns id, gender, race, age, path, and images/<path>/<stem>.jpg",
    ),
    "E341": Code(
        "A class has fewer images or groups than there are folds, or a table's folds cannot be used.",
        "use fewer folds, or add images of that class",
    ),
    "E342": Code(
        "A label fix is not valid.",
        "columns id,field,value,source; fields gender, age, swap, label and drop; the id is a person or an image",
    ),
    "E343": Code("Two label fixes contradict each other.", "leave out one of the sources with --without SOURCE"),
    "I344": Code("Label fixes were applied.", "nothing to do; --without SOURCE leaves out a source's fixes"),
    "W345": Code(
        "Label fixes refer to people or images that are not in the data.",
        "check that the fixes belong to this data set",
    ),
    "E346": Code(
        "A pseudo-labeled image is also in the training data, where some fold holds it out.",
        "predict images that are not in the training data",
    ),
    "W347": Code(
        "Pseudo-labels are used for training; the rules of a contest may forbid that.",
        "read the rules; without --pseudo only labeled images are used",
    ),
    "I348": Code("The number of pseudo-labeled images per class.", "nothing to do"),
    "E350": Code("A file of face boxes cannot be read.", "make it with ens crop IMAGES -o boxes.parquet"),
    "E351": Code(
        "Images are not in the file of face boxes.",
        "run ens crop on the folder that contains them; names are relative to that folder",
    ),
    "I332": Code(
        "Files in a folder of images are not images; they were passed over.",
        "nothing to do, unless one of them is an image: convert it to JPEG or PNG",
    ),
    "I333": Code("Files without an image's suffix are images by their content.", "nothing to do: they are read"),
    "W334": Code(
        "An image's metadata are damaged or too large; the pixels are used as stored.",
        "check that the image is upright",
    ),
    "E353": Code(
        "A JPEG has so many scans that decoding it would take minutes.",
        "write it again as a JPEG of one scan, for example with jpegtran or an image editor",
    ),
    "E354": Code(
        "A face box was made for another image.",
        "find the faces in these images again: ens crop IMAGES -o boxes.parquet --fresh",
    ),
    "E356": Code(
        "Decoding an image takes more than a minute.",
        "write it again with an image editor; all other images are done",
    ),
    "W358": Code(
        "The pixels of an uncompressed image end in zeros from a block of the file on: its last part may be missing.",
        "look at the image; copy or download it again if a part is black",
    ),
    "W369": Code(
        "A 16-bit image uses less than a quarter of its range and is decoded dark (where white is zero in the file, "
        "nearly white): it may hold 10 to 14 bits.",
        "scale the images to 8 or 16 bits, as those of the training; ens train --channels 1 --scale 0,4095 takes 12 bits",
    ),
    "W355": Code(
        "Face boxes do not record the size of their images, or no image has a face.",
        "make sure that they were found in images of this size, or find the faces again with ens crop",
    ),
    "I352": Code("Face boxes were given, but no model uses them.", "nothing to do"),
    "I380": Code("The cells of a table are not separated by commas.", "nothing to do if the columns look right"),
    "I381": Code(
        "Ids matched without regard to spaces, ./, folders or the suffix.", "nothing to do if the example looks right"
    ),
    "I382": Code("A column was chosen by its place or name.", "--id-column and --label-column name another one"),
    "I385": Code(
        "The values of an axis are ordered.",
        "nothing to do if the order is right; otherwise give the labels in their order, or leave --ordinal out",
    ),
    "W386": Code(
        "Rows or columns of a file of label fixes are not read.",
        "delete the whole line of each fix that is not to apply: a comment beside it does not delete it",
    ),
    "E380": Code(
        "A model aligns faces by five points, and the file of boxes has none.",
        "find the faces with ens crop --detector retinaface, which finds points",
    ),
    "E383": Code(
        "An id is several images once its suffix or folder is left out.",
        "write the ids with suffix and folder, or remove the other images",
    ),
    "E384": Code(
        "A map of images to rows is not valid.",
        "columns image,row and, if wanted, weight: finite weights, none negative, and one above 0 for each row",
    ),
    "I472": Code(
        "The values of an axis are ordered as the classes are.",
        "give the classes in order with --labels",
    ),
    "I474": Code("Whether a fold takes the mean of its weights.", "see --swa"),
    "I473": Code("How the targets of an axis are spread over its values.", "see --label-distribution"),
    "E391": Code(
        "A recipe cannot teach: it has no probabilities, or what it learned cannot be learned again for each fold.",
        "save a recipe of another pool, method or metric: ens blend --oof PREDICTIONS --truth TRUTH.csv --save blend.json",
    ),
    "E392": Code(
        "The folds of a teacher are missing, or differ between its members.",
        "train the members in the same folds, or name the folds with --folds",
    ),
    "E393": Code(
        "Predictions to learn from are not of models that held out the same images.",
        "predict the images with every fold's model of the recipe, and use the folds that they had",
    ),
    "I391": Code("A recipe smooths over rows; a student learns without it.", "nothing to do"),
    "I392": Code("Members that the recipe does not have are left out.", "nothing to do"),
    "I393": Code("A student's labels: whose probabilities they are, and of how many images.", "nothing to do"),
    "W394": Code(
        "The features of a probe are of a network that was trained on one fold split of labeled images.",
        "nothing to do if it was trained on other images; else use a network that never saw these labels",
    ),
    "W391": Code(
        "A student's labels are out of fold, but come from models that were trained on what the student is scored on.",
        "give the predictions of the training images by all models with --predictions, or score it on other images",
    ),
    "I470": Code("A network takes one channel; how grey is made and normalized.", "see --channels, --mean and --std"),
    "E208": Code(
        "Several fold splits are asked for, and the folds are given.",
        "leave --repeats out, or let ens train deal the folds",
    ),
    "E209": Code(
        "This is not possible for images whose own channels are kept (channels 1 to 4 in the card).",
        "leave the option out, or use --channels rgb, bgr or grey, which are made from RGB in 8 bits",
    ),
    "E210": Code(
        "A model takes stored values as they are, and nothing says how to normalize them.",
        "name --mean, --std and --scale",
    ),
    "E362": Code(
        "An image or array does not have the channels that the model takes.",
        "give it the channels of the card; arrays are (height, width), (height, width, channels) or (channels, height, width)",
    ),
    "E363": Code("An array has values that are not finite.", "replace NaN and infinity in the file"),
    "E364": Code(
        "A table has fractions as labels (soft labels, or measured values), which are neither trained on nor scored.",
        "write one class per image, such as the most probable, or 0 and 1 per label; ens train --smoothing softens them",
    ),
    "E365": Code(
        "It cannot be told from a table which rows are smoothed together.",
        "name its columns: --smooth-group of the groups, --smooth-order of the numbers by which their rows are ordered",
    ),
    "W368": Code(
        "Training images are all of one class or person, or classes have too few of them to be learned and scored.",
        "add images of other classes or people, or leave out classes that have none; check that the labels were read as meant",
    ),
    "W366": Code(
        "Names of classes or groups differ only in letter case, spaces, zeros or invisible characters.",
        "give one class, or one person, one name in the data; nothing to do where they are different ones",
    ),
    "W367": Code("A class or group is named like a missing value.", "give these rows a value, or remove the rows"),
}
CODES |= PREDICTION_CODES | MODEL_CODES | RUN_CODES
