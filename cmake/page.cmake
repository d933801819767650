# The web page: page.html with its style and scripts put inside, so that it is one answer of the
# server and cannot be of two versions; and what the server sends along. Writes OUT/page.html and
# OUT/page.policy, for tests, and OUT/page_data.h, for src/serve/page.c.
#
#   cmake -DUI=src/serve/ui -DOUT=FOLDER -P page.cmake
#
# The policy names style and script by their SHA-256: a browser runs nothing else, wherever it comes
# from. It knows hashes in base64, of which CMake has none.
cmake_minimum_required(VERSION 3.22)

set(scripts dom api markdown chat metrics chart dashboard report main)

function(policy_hash text out)
  string(SHA256 hex "${text}")
  string(APPEND hex "00") # 33 bytes: 22 times 12 bits, the last 8 of them nothing
  set(digits "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
  set(made "")
  foreach(at RANGE 0 63 3)
    string(SUBSTRING "${hex}" ${at} 3 three)
    math(EXPR high "0x${three} >> 6")
    math(EXPR low "0x${three} & 63")
    string(SUBSTRING "${digits}" ${high} 1 high)
    string(SUBSTRING "${digits}" ${low} 1 low)
    string(APPEND made "${high}${low}")
  endforeach()
  string(SUBSTRING "${made}" 0 43 made)
  set(${out} "'sha256-${made}='" PARENT_SCOPE)
endfunction()

file(READ "${UI}/page.html" page)
file(READ "${UI}/page.css" style)
set(script "")
foreach(name IN LISTS scripts)
  file(READ "${UI}/${name}.js" part)
  string(APPEND script "${part}")
endforeach()
policy_hash("${style}" style_hash)
policy_hash("${script}" script_hash)
string(REPLACE "@style@" "${style}" page "${page}")
string(REPLACE "@script@" "${script}" page "${page}")
file(WRITE "${OUT}/page.html" "${page}")

string(CONCAT policy
  "default-src 'none'; script-src ${script_hash}; style-src ${style_hash}; img-src data:; "
  "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
  "require-trusted-types-for 'script'; trusted-types 'none'")
file(SHA256 "${OUT}/page.html" hash)
string(SUBSTRING "${hash}" 0 32 tag)

# An array and not a string literal, which compilers need not take past 4,095 characters.
file(READ "${OUT}/page.html" bytes HEX)
string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE "${OUT}/page_data.h" "/* Made by cmake/page.cmake. */
#define PAGE_ETAG \"\\\"${tag}\\\"\"
#define PAGE_POLICY \\
    \"${policy}\"
static const unsigned char page_html[] = {
${bytes}
};
")
file(WRITE "${OUT}/page.policy" "${policy}")
