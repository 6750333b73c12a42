// Score photographs with a file of `anoseg export`, in C++: onnxruntime and OpenCV, no Python.
//
//   anoseg model.onnx street.jpg output/
//
// writes, for every score of the file,
//   output/<score>.tiff   the score of every pixel, 32-bit floats, higher is more anomalous
//   output/<score>.png    255 where the score reaches the file's threshold, if it has one
// and output/sem_seg.png, the number of the known class of every pixel. Scores in one byte, which
// `--one-byte` exports, become output/<score>_byte.png, 128 and more where they reach the threshold.
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <optional>
#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// The file's metadata, text or JSON by key; "" for a key that it does not have.
std::string lookUp(const Ort::ModelMetadata& about, const char* key) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto text = about.LookupCustomMetadataMapAllocated(key, allocator);
    return text ? text.get() : "";
}

// The strings of a JSON list: `["sem_seg", "rba"]`. No name of an output has a quotation mark.
std::vector<std::string> readList(const std::string& json) {
    std::vector<std::string> found;
    for (size_t begin = json.find('"'); begin != std::string::npos; begin = json.find('"', begin)) {
        const size_t end = json.find('"', ++begin);
        if (end == std::string::npos) break;
        found.push_back(json.substr(begin, end - begin));
        begin = end + 1;
    }
    return found;
}

// The number after `"key":` in JSON, looked for from `from` on.
std::optional<double> readNumber(const std::string& json, const std::string& key, size_t from = 0) {
    const size_t place = json.find("\"" + key + "\":", from);
    if (place == std::string::npos) return std::nullopt;
    const char* text = json.c_str() + place + key.size() + 3;
    char* end = nullptr;
    const double value = std::strtod(text, &end);
    return end == text ? std::nullopt : std::optional<double>(value);
}

// The threshold of a score: that of `anoseg threshold`, or the one at 95 % TPR of an evaluation.
std::optional<double> readThreshold(const Ort::ModelMetadata& about, const std::string& score) {
    const std::string promised = lookUp(about, "thresholds");
    const size_t place = promised.find("\"" + score + "\": {");
    if (place != std::string::npos) return readNumber(promised, "threshold", place);
    return readNumber(lookUp(about, "thresholds_tpr95"), score);
}

// The photograph as the file takes it: RGB, channel after channel, 8 bits.
std::vector<uint8_t> channelsFirst(const cv::Mat& bgr) {
    std::vector<uint8_t> values(3 * bgr.total());
    for (int channel = 0; channel < 3; ++channel) {
        cv::Mat plane(bgr.size(), CV_8U, values.data() + channel * bgr.total());
        cv::extractChannel(bgr, plane, 2 - channel);
    }
    return values;
}

void write(const std::filesystem::path& path, const cv::Mat& values) {
    if (!cv::imwrite(path.string(), values)) throw std::runtime_error("cannot write " + path.string());
}

void writeScore(const std::filesystem::path& folder, const std::string& name, const cv::Mat& score,
                std::optional<double> threshold) {
    write(folder / (name + ".tiff"), score);
    if (!threshold) return;
    // As floats, because the file compares them so.
    const float limit = static_cast<float>(*threshold);
    write(folder / (name + ".png"), score >= limit);
    std::cout << name << ": " << cv::countNonZero(score >= limit) << " of " << score.total()
              << " pixels reach " << limit << '\n';
}

void run(const std::string& model, const std::string& photo, const std::filesystem::path& folder) {
    const cv::Mat image = cv::imread(photo, cv::IMREAD_COLOR);  // 8 bits, turned upright
    if (image.empty()) throw std::runtime_error("cannot read " + photo);

    Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "anoseg");
    Ort::Session session(environment, model.c_str(), Ort::SessionOptions{});
    const Ort::ModelMetadata about = session.GetModelMetadata();
    const std::vector<std::string> names = readList(lookUp(about, "outputs"));
    if (names.empty()) throw std::runtime_error(model + " is not a file of `anoseg export`");
    std::vector<const char*> asked;
    for (const std::string& name : names) asked.push_back(name.c_str());

    std::vector<uint8_t> pixels = channelsFirst(image);
    const std::vector<int64_t> shape{1, 3, image.rows, image.cols};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const Ort::Value input = Ort::Value::CreateTensor<uint8_t>(
        memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    const char* given = "image";
    std::vector<Ort::Value> outputs =
        session.Run(Ort::RunOptions{}, &given, &input, 1, asked.data(), asked.size());

    std::filesystem::create_directories(folder);
    for (size_t index = 0; index < names.size(); ++index) {
        if (names[index] == "sem_seg") {
            const int64_t* classes = outputs[index].GetTensorData<int64_t>();
            cv::Mat picture(image.size(), CV_8U);
            for (size_t pixel = 0; pixel < image.total(); ++pixel) {
                picture.data[pixel] = static_cast<uint8_t>(classes[pixel]);
            }
            write(folder / "sem_seg.png", picture);
        } else if (outputs[index].GetTensorTypeAndShapeInfo().GetElementType() ==
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) {
            uint8_t* levels = outputs[index].GetTensorMutableData<uint8_t>();
            write(folder / (names[index] + ".png"), cv::Mat(image.size(), CV_8U, levels));
        } else {
            float* values = outputs[index].GetTensorMutableData<float>();
            const cv::Mat score(image.size(), CV_32F, values);
            writeScore(folder, names[index], score, readThreshold(about, names[index]));
        }
    }
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 4) {
        std::cerr << "usage: anoseg MODEL.onnx PHOTO FOLDER\n";
        return 2;
    }
    try {
        run(arguments[1], arguments[2], arguments[3]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
    return 0;
}
