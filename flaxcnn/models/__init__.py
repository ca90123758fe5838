"""The networks, one file per paper, and their registry."""

from flaxcnn.models._initialize import init
from flaxcnn.models._network import Feature, Network, Outputs, feature_info
from flaxcnn.models._registry import create_model, list_models, variant
from flaxcnn.models._variant import Variant
from flaxcnn.models.airbench import Airbench
from flaxcnn.models.alexnet import AlexNet
from flaxcnn.models.bad_design import BadDesign, PyramidCNN
from flaxcnn.models.bn_inception import BNInception
from flaxcnn.models.darknet import Darknet19, Darknet53
from flaxcnn.models.densenet import DenseNet
from flaxcnn.models.googlenet import GoogLeNet
from flaxcnn.models.inception_resnet import InceptionResNet
from flaxcnn.models.inception_v3 import InceptionV3
from flaxcnn.models.inception_v4 import InceptionV4
from flaxcnn.models.lenet import LeNet, LeNet5
from flaxcnn.models.mlp import MLP
from flaxcnn.models.mobilenet import MobileNet
from flaxcnn.models.mobilenet_v2 import MobileNetV2
from flaxcnn.models.nasnet import NASNet
from flaxcnn.models.nin import NiN
from flaxcnn.models.resnet import ResNet
from flaxcnn.models.resnet_v2 import ResNetV2
from flaxcnn.models.senet import SENet
from flaxcnn.models.small_cnn import SmallCNN
from flaxcnn.models.squeezenet import SqueezeNet
from flaxcnn.models.vgg import VGG
from flaxcnn.models.xception import Xception
from flaxcnn.models.zfnet import ZFNet

__all__ = [
    "MLP",
    "VGG",
    "Airbench",
    "AlexNet",
    "BNInception",
    "BadDesign",
    "Darknet19",
    "Darknet53",
    "DenseNet",
    "GoogLeNet",
    "InceptionResNet",
    "InceptionV3",
    "InceptionV4",
    "LeNet",
    "LeNet5",
    "MobileNet",
    "MobileNetV2",
    "NASNet",
    "NiN",
    "PyramidCNN",
    "ResNet",
    "ResNetV2",
    "SENet",
    "SmallCNN",
    "SqueezeNet",
    "Feature",
    "Network",
    "Outputs",
    "Variant",
    "feature_info",
    "init",
    "Xception",
    "ZFNet",
    "create_model",
    "list_models",
    "variant",
]
