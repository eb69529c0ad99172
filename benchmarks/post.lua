-- wrk -s post.lua URL -- FILE: posts the lines of FILE in turn, and prints what came of it as JSON.
-- A line may begin with a header of its own and a tab.
-- Twelve @ in a line become a number that is another one in each request, and in each run.

local MARK = string.rep("@", 12)
local requests, marked, last = {}, nil, os.time() % 1e6 * 1e6

function init(args)
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do
    local name, value, body = line:match("^([%w-]+): ([^\t]*)\t(.*)$")
    if name then
      wrk.headers[name] = value
    end
    requests[#requests + 1] = wrk.format("POST", nil, nil, body or line)
  end
  marked = requests[1]:find(MARK, 1, true)
end

function request()
  last = last + 1
  local chosen = requests[last % #requests + 1]
  if marked then
    chosen = chosen:gsub(MARK, string.format("%012d", last))
  end
  return chosen
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "failed": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
