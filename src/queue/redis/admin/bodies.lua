-- bodies(bytes, id...) -> bytes or false...: the messages themselves, as many of the first as it takes to reach that many bytes.
local left, out = assert(tonumber(ARGV[1])), {}
for i = 2, #ARGV do
  if left <= 0 then break end
  local body = redis.call('HGET', MESSAGES, ARGV[i])
  out[#out + 1] = body
  left = left - (body and #body or 0) - 64
end
return out
