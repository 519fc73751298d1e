// The C++ part of libtorch.py: loads TorchScript files, trains a network, and prints the truth of each model as victims/truth.py does.
//
//     libtorch PLAIN.pt [FROZEN.pt]

#include <torch/script.h>
#include <torch/torch.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <iostream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

// SHA-256 of some bytes in lower-case hex (FIPS 180-4).
static std::string sha256(const uint8_t* data, size_t length) {
  static const uint32_t k[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
      0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
      0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
      0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
      0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
      0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  auto rotated = [](uint32_t word, int by) { return word >> by | word << (32 - by); };
  std::vector<uint8_t> text(data, data + length);
  text.push_back(0x80);
  while (text.size() % 64 != 56) text.push_back(0);
  for (int shift = 56; shift >= 0; shift -= 8) text.push_back(uint8_t(uint64_t(length) * 8 >> shift));
  for (size_t block = 0; block < text.size(); block += 64) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
      const uint8_t* at = text.data() + block + 4 * i;
      w[i] = uint32_t(at[0]) << 24 | at[1] << 16 | at[2] << 8 | at[3];
    }
    for (int i = 16; i < 64; i++) {
      uint32_t a = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t b = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    uint32_t v[8];
    for (int i = 0; i < 8; i++) v[i] = h[i];
    for (int i = 0; i < 64; i++) {
      uint32_t s1 = rotated(v[4], 6) ^ rotated(v[4], 11) ^ rotated(v[4], 25);
      uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + k[i] + w[i];
      uint32_t s0 = rotated(v[0], 2) ^ rotated(v[0], 13) ^ rotated(v[0], 22);
      uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
      for (int j = 7; j > 0; j--) v[j] = v[j - 1];
      v[4] += t1;
      v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
  }
  std::string hex;
  char part[9];
  for (uint32_t word : h) {
    snprintf(part, sizeof part, "%08x", word);
    hex += part;
  }
  return hex;
}

static std::string quoted(const std::string& text) { return "\"" + text + "\""; }

static std::string address(const void* pointer) {
  std::ostringstream out;
  out << "\"0x" << std::hex << uintptr_t(pointer) << "\"";
  return out.str();
}

static std::string dtype(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kDouble: return "float64";
    case torch::kFloat: return "float32";
    case torch::kHalf: return "float16";
    case torch::kLong: return "int64";
    default: throw std::runtime_error("a type that this victim has no name for");
  }
}

// A tensor as `described` of truth.py has it.
static std::string described(const torch::Tensor& tensor) {
  torch::NoGradGuard no_grad;
  auto dense = tensor.detach().contiguous();
  std::ostringstream out;
  auto list = [&](const char* name, torch::IntArrayRef numbers) {
    out << quoted(name) << ": [";
    for (size_t i = 0; i < numbers.size(); i++) out << (i ? ", " : "") << numbers[i];
    out << "], ";
  };
  out << "{";
  list("shape", tensor.sizes());
  list("stride", tensor.strides());
  out << "\"dtype\": " << quoted(dtype(tensor)) << ", \"offset\": " << tensor.storage_offset()
      << ", \"data_ptr\": " << address(tensor.data_ptr()) << ", \"id\": null, \"header\": " << address(tensor.unsafeGetTensorImpl())
      << ", \"requires_grad\": " << (tensor.requires_grad() ? "true" : "false") << ", \"device\": \"cpu\", \"sha256\": "
      << quoted(sha256(static_cast<const uint8_t*>(dense.data_ptr()), dense.nbytes())) << "}";
  return out.str();
}

// Items of a JSON object.
struct Items {
  std::string text;
  void add(const std::string& name, const std::string& value) { text += (text.empty() ? "" : ", ") + quoted(name) + ": " + value; }
  std::string object() const { return "{" + text + "}"; }
};

static std::string module_row(const std::string& class_name, const void* object, bool training) {
  return "{\"class\": " + class_name + ", \"id\": " + address(object) + ", \"training\": " + (training ? "true" : "false") + ", \"hyper\": {}}";
}

static void tell(const char* role, const std::string& class_name, const void* object, const Items& state, const Items& modules,
                 const Items& grads, const std::string& optimizer) {
  Items truth;
  truth.add("role", quoted(role));
  truth.add("pid", std::to_string(getpid()));
  // No Python says its version or that of PyTorch.
  truth.add("python", "null");
  truth.add("torch", "null");
  truth.add("class", class_name);
  truth.add("id", address(object));
  truth.add("state_dict", state.object());
  truth.add("modules", modules.object());
  truth.add("grads", grads.object());
  for (const char* name : {"odd", "inside", "moved", "training_elsewhere", "mapped"}) truth.add(name, "{}");
  truth.add("extra", "[]");
  if (!optimizer.empty()) truth.add("optimizer", optimizer);
  std::cout << "TRUTH " << truth.object() << std::endl;
}

static void tell_script(const char* role, const torch::jit::Module& net) {
  Items state, modules;
  for (const auto& item : net.named_parameters(true)) state.add(item.name, described(item.value));
  // `named_buffers` of old versions also lists tensors that are plain attributes.
  for (const auto& item : net.named_modules()) {
    const auto& type = item.value.type();
    for (size_t slot = 0; slot < type->numAttributes(); slot++) {
      auto name = item.name + (item.name.empty() ? "" : ".") + type->getAttributeName(slot);
      if (type->is_buffer(slot)) state.add(name, described(item.value._ivalue()->getSlot(slot).toTensor()));
    }
  }
  auto class_name = [](const torch::jit::Module& module) { return quoted(module.type()->name()->qualifiedName()); };
  for (const auto& item : net.named_modules())
    modules.add(item.name, module_row(class_name(item.value), item.value._ivalue().get(), item.value.is_training()));
  tell(role, class_name(net), net._ivalue().get(), state, modules, Items(), "");
}

// A part whose parameters are its own, one of them under two names.
struct BlockImpl : torch::nn::Module {
  BlockImpl() : linear(register_module("linear", torch::nn::Linear(8, 4))) {
    gain = register_parameter("gain", torch::randn({4}));
    tied = register_parameter("the_same_gain_under_a_long_name", gain);
    steps = register_buffer("steps", torch::arange(3));
  }
  torch::Tensor forward(torch::Tensor x) { return linear(x) * gain * tied; }
  torch::nn::Linear linear;
  torch::Tensor gain, tied, steps;
};
TORCH_MODULE(Block);

struct Net : torch::nn::Module {
  Net() {
    body = register_module("body", torch::nn::Sequential(torch::nn::Conv2d(1, 8, 3), torch::nn::BatchNorm2d(8), torch::nn::ReLU()));
    block = register_module("block", Block());
    frozen = register_module("frozen", torch::nn::Linear(4, 2));
    for (auto& parameter : frozen->parameters()) parameter.set_requires_grad(false);
    frozen->eval();
  }
  torch::Tensor forward(torch::Tensor x) { return frozen(block(body->forward(x).mean(torch::IntArrayRef{2, 3}))); }
  torch::nn::Sequential body{nullptr};
  Block block{nullptr};
  torch::nn::Linear frozen{nullptr};
};

// The momenta that an optimizer keeps; the key of its state is a pointer from PyTorch 2.1 on, and was text before.
static torch::Tensor momentum(torch::optim::SGD& optimizer, const torch::Tensor& parameter) {
  std::ostringstream number;
  number << uintptr_t(parameter.unsafeGetTensorImpl());
  for (auto& entry : optimizer.state()) {
    std::ostringstream key;
    key << entry.first;
    uintptr_t address = std::stoull(key.str(), nullptr, key.str().compare(0, 2, "0x") ? 10 : 16);
    if (address == uintptr_t(parameter.unsafeGetTensorImpl()))
      return static_cast<torch::optim::SGDParamState&>(*entry.second).momentum_buffer();
  }
  return {};
}

static void tell_network(const Net& net, torch::optim::SGD& optimizer) {
  Items state, modules, grads, momenta;
  std::set<void*> known;
  for (const auto& item : net.named_parameters()) {
    state.add(item.key(), described(item.value()));
    // What training left is listed once, under the first name.
    if (!known.insert(item.value().unsafeGetTensorImpl()).second) continue;
    if (item.value().grad().defined()) grads.add(item.key(), described(item.value().grad()));
    auto kept = momentum(optimizer, item.value());
    // Nothing in memory says what an optimizer of C++ calls the tensors of its state: they are numbered.
    if (kept.defined()) momenta.add(item.key(), "{\"state0\": " + described(kept) + "}");
  }
  for (const auto& item : net.named_buffers()) state.add(item.key(), described(item.value()));
  for (const auto& item : net.named_modules()) modules.add(item.key(), module_row("null", item.value().get(), item.value()->is_training()));
  tell("torch::nn", "null", &net, state, modules, grads,
       "{\"class\": null, \"state\": " + momenta.object() + ", \"param_groups\": [], \"parameters\": []}");
}

int main(int count, char** arguments) {
  torch::manual_seed(18);
  auto plain = torch::jit::load(arguments[1]);
  {
    torch::NoGradGuard no_grad;
    plain.forward({torch::ones({1, 3, 8, 8})});
  }
  tell_script("TorchScript", plain);
  std::vector<torch::jit::Module> others;
  if (count > 2) others.push_back(torch::jit::load(arguments[2]));

  auto net = std::make_shared<Net>();
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  for (int step = 0; step < 2; step++) {
    optimizer.zero_grad();
    net->forward(torch::randn({4, 1, 8, 8})).sum().backward();
    optimizer.step();
  }
  tell_network(*net, optimizer);
  std::cout << "READY" << std::endl;
  while (true) sleep(1000);
}
