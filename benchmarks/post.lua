-- wrk -s post.lua URL -- FILE: posts the lines of FILE in turn and prints the result as JSON.
-- Twelve @ in a line become a number that differs in every request and every run.

local MARK = string.rep("@", 12)
local requests, last = {}, os.time() % 1e6 * 1e6

-- The pieces of a text between its marks; joining them is as fast as copying the text.
local function pieces(text)
  local parts, from = {}, 1
  while true do
    local first, past = text:find(MARK, from, true)
    parts[#parts + 1] = text:sub(from, (first or 0) - 1)
    if not first then
      return parts
    end
    from = past + 1
  end
end

function init(args)
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do
    requests[#requests + 1] = pieces(wrk.format("POST", nil, nil, line))
  end
end

function request()
  last = last + 1
  local chosen = requests[last % #requests + 1]
  return #chosen == 1 and chosen[1] or table.concat(chosen, string.format("%012d", last))
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "failed": %d, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(99) / 1e3))
end
