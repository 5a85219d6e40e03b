{
  "targets": [
    {
      "target_name": "netagent",
      "sources": [
        "src/addon.cc",
        "<!@(ls src/engine/*.cc)",
        "src/bpf.cc",
        "src/datagram_socket.cc",
        "src/netlink_socket.cc",
        "src/netns.cc",
        "src/readable_watch.cc",
        "src/tap_device.cc",
      ],
      "include_dirs": ["<!@(node -p \"require('node-addon-api').include\")", "src"],
      "defines": ["NAPI_VERSION=8", "NAPI_DISABLE_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED"],
      "cflags": ["-Wall", "-Wextra", "-Werror", "-O2", "-fno-exceptions"],
      "cflags_cc": ["-std=c++20", "-fno-exceptions"],
      "cflags_cc!": ["-std=gnu++17", "-fno-rtti"],
    },
    {
      "target_name": "netctl",
      "type": "executable",
      "sources": ["src/front/netctl.cc"],
      "cflags": ["-Wall", "-Wextra", "-Werror", "-O2"],
      "cflags_cc": ["-std=c++20", "-fno-exceptions"],
      "cflags_cc!": ["-std=gnu++17", "-fno-rtti"],
    }
  ]
}
