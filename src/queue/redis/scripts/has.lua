-- has(id...) -> {1 or 0...}: which messages there still are, wherever.
local out = {}
for i, id in ipairs(ARGV) do out[i] = redis.call('HEXISTS', MESSAGES, id) end
return out
