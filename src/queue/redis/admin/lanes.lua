-- lanes(from, n) -> {origin, time, messages, oldest id or '', failures or ''}...: lanes with waiting messages, by their time.
local from, n = assert(tonumber(ARGV[1])), assert(tonumber(ARGV[2]))
local lanes, out = redis.call('ZRANGE', LANES, from, from + n - 1, 'WITHSCORES'), {}
for i = 1, #lanes, 2 do
  local origin = lanes[i]
  local oldest = waiting_of(origin, 1)[1]
  out[#out + 1] = {origin, whole(lanes[i + 1]),
    redis.call('ZLEXCOUNT', WAITING, '[' .. origin .. '\n', '[' .. origin .. '\n:'),
    oldest and string.sub(oldest, -16) or '', redis.call('HGET', FAILURES, origin) or ''}
end
return out
